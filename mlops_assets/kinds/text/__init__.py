"""Texts: one label each, or several."""
