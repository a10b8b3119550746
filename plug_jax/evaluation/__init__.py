"""What results are held against, and pictures of them."""
