//go:build !libdns

package main

// libDNSProviders are the libdns providers that are compiled in. docs/libdns.md says how to have some.
func libDNSProviders() map[string]libDNSMaker { return nil }
