"""``instil rivals``: was tuning needed, or would a prompt have done?"""
