"""Very many rows on disk, mapped into memory: as examples, and as ids under one template and tokenizer.

A store is a folder of Arrow IPC files of a fixed number of rows each (`shards`), with a manifest that is written last.
What is in it is named by a hash, so that it is built once and read by all who want the same; a build that was killed
goes on after its complete files.
"""
