"""What a model can do besides what it is taught: general texts, small skills, refusals and chats, by likelihood."""
