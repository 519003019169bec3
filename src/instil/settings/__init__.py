"""Every setting: its options, presets, and how they are resolved."""
