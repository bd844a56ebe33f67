"""Feature views: computed over tables for training, kept and looked up online for serving."""
