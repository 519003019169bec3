"""Other models behind one question: Ollama, OpenAI's interface, llama.cpp; patience, and a journal of replies."""
