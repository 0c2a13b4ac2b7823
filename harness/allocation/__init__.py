"""Allocation: one option for every group, under budgets."""
