"""`presel export`: what a run chose, in the forms that other programs read."""
