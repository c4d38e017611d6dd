"""Where the time of an answer goes: measured stage by stage, against what the machine can do."""
