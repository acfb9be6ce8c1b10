"""What people and programs read: the terminal's table, the run record, the plan."""
