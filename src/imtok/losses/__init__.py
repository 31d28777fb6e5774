"""Training losses: functions and modules that map tensors to scalars."""
