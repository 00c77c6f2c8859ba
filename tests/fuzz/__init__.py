"""Damaged and hostile files for everything that reads a file.

``python -m tests.fuzz --minutes 30`` changes valid files at random and reads them. A reader must
give the right result, or refuse the file with an error of the library that names it. Whatever else
happens is a fault: other values, another exception, a crash, a hang, much memory, a changed primary
or random state, a file written or read outside of the folder.

The files, in reading order: ``reader`` (what an entry of the registry is), ``models``, ``runs`` and
``data`` (the entries), ``mutate`` and ``formats`` (the changes), ``judge`` (a worker that reads one
changed file after another and gives verdicts), ``found`` (every fault that was found before).
"""
