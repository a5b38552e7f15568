"""Tables, figures and pages about results."""
