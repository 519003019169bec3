"""A tuned model carried out of the door together with its template."""
