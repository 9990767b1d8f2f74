"""What our own model servers share, whatever computes in them."""
