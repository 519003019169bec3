"""HTTP in OpenAI's and Ollama's shapes, and the web pages."""
