"""Digit scenes: the built-in pool of pictures, questions and answers."""
