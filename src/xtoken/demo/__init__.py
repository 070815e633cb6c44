"""The embedded default: word problems, a teacher that splits digits, a student that packs them, one table."""
