"""Convert weights of other libraries to our parameter trees and back."""
