"""Selection of millions of drawn images, out of core."""
