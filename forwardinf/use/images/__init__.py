"""Which training images made this image?"""
