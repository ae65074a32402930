"""Which labels are wrong, and which examples does the model know by heart?"""
