"""The commands of the program `presel`, a module each."""
