"""Is this test example, or a near copy of it, in the training set?"""
