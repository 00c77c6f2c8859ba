"""The paper's tasks, one readable file each: primary, data, loss, metric."""
