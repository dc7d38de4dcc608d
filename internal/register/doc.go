// Package register writes a host into an authoritative DNS by itself, without a rota that runs: its own addresses, those of the service it
// belongs to, and the pointers back. It reads what the DNS says, plans the difference and has the DNS make it true only if it still is as
// it was read; what others keep there stays. Which names a host may claim follows from its own name by a rota.RegisterTemplate; how the
// DNS is reached is the caller's business.
package register
