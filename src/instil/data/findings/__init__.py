"""What is wrong with rows, or worth knowing of them, found before anything is spent on them."""
