"""The experiments of the paper: tasks, training, studies and reports (extra ``lab``).

Built on :mod:`hyperlight`, which never imports this package.
"""
