"""What can be exported: runs, adapters and models, behind one interface."""
