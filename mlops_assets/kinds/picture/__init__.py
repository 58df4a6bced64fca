"""Pictures: one label each."""
