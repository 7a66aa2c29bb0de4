"""What people look at: pictures, explanations, the report, cards."""
