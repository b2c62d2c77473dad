"""Stages that several processes work on, on one machine or many."""
