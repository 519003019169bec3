"""``instil more``: what would more rows bring?"""
