//go:build !unix

package probe

// descriptors is how many descriptors this process may open; systems without such a limit have other bounds far above ours.
func descriptors() int { return 1 << 16 }
