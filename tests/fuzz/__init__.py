"""Foreign bytes through every door: either a result or an error of the project, within bounds, whatever they are.

``python -m tests.fuzz TARGET`` looks for inputs that break this, guided by the code that they reach (atheris, which is
libFuzzer for Python); ``kept/`` holds those that did once, and `test_kept` puts them through their targets again.
"""
