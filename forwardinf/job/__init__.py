"""From a call to pieces of work: what is settled before the first reading, and what becomes of what is read."""
