"""Other models behind one interface: Ollama, OpenAI's interface, llama.cpp; patience, and a journal of replies."""
