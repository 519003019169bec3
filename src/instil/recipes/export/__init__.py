"""Taking a model elsewhere: whole, or its adapters alone."""
