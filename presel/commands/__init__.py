"""The commands of the program `presel`, one module each, with a function `main(arguments)`."""
