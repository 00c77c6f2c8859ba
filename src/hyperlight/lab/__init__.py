"""The paper, runnable: tasks, training, figures and reports (extra ``lab``).

Built on :mod:`hyperlight`, which never imports this package.
"""
