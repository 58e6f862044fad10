"""Calls of the operations as data: one module, and one list, per operation."""
