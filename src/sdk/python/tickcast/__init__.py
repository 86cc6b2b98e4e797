"""tickcast"""
