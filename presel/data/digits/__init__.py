"""Digit scenes: the built-in pictures, questions and answers."""
