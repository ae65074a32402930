"""Which training text taught the model this?"""
