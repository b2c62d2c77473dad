"""The commands of the program `presel`, one module each, with a function `main(arguments)`.

It returns the exit code, and raises a `PreselError` for a mistake in the arguments or the data.
"""
