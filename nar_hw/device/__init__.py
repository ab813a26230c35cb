"""What runs on a device: the standard library, NumPy and the runtime, nothing else. Kits carry these files as one script.

Each is plain Python 3.10, imports nothing of nar_hw but its neighbours here, and is what nar_hw itself uses on this machine.
"""
