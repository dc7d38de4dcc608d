package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"

	"github.com/rota-dns/rota/internal/api"
)

// version is that of the module as it was built.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}

func (a *app) versionCommand() *cobra.Command {
	var output string
	c := &cobra.Command{Use: "version", Short: "Show the version of this command", Args: cobra.NoArgs}
	c.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	c.RunE = func(*cobra.Command, []string) error {
		f, err := parseFormat(output, formatTable, formatJSON, formatYAML)
		if err != nil {
			return err
		}
		v := struct {
			Version string `json:"version"`
			Go      string `json:"go"`
			OS      string `json:"os"`
			Arch    string `json:"arch"`
		}{a.version, runtime.Version(), runtime.GOOS, runtime.GOARCH}
		switch f {
		case formatJSON:
			return writeJSON(a.out, v)
		case formatYAML:
			return writeYAML(a.out, v)
		}
		_, err = fmt.Fprintf(a.out, "rota %s (%s, %s/%s)\n", v.Version, v.Go, v.OS, v.Arch)
		return err
	}
	return c
}

func (a *app) openapiCommand() *cobra.Command {
	return &cobra.Command{
		Use: "openapi", Short: "Print the API's OpenAPI 3.1 document", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			b, err := api.OpenAPI(a.version)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.out, "%s\n", b)
			return err
		},
	}
}

func (a *app) digCommand() *cobra.Command {
	var subnet string
	var tcp bool
	c := &cobra.Command{
		Use: "dig NAME [TYPE] [@SERVER]", Short: "Ask a name server, by default rota's own", Args: cobra.RangeArgs(1, 3),
		Example: "  rota dig www.lb.example.org\n  rota dig www.lb.example.org AAAA @192.0.2.53 --subnet 203.0.113.0/24",
	}
	c.Flags().StringVar(&subnet, "subnet", "", "ask for a client in this prefix (EDNS client subnet, RFC 7871)")
	c.Flags().BoolVar(&tcp, "tcp", false, "ask over TCP")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		q, server, err := digQuestion(args, subnet)
		if err != nil {
			return err
		}
		if server == "" {
			if server, err = a.ownNameServer(cmd.Context()); err != nil {
				return err
			}
		}
		return a.dig(cmd.Context(), q, server, tcp)
	}
	return c
}

// digQuestion reads NAME [TYPE] [@SERVER]; server is host:port or empty.
func digQuestion(args []string, subnet string) (q *dns.Msg, server string, err error) {
	name, typ := "", dns.TypeA
	for _, arg := range args {
		s, isServer := strings.CutPrefix(arg, "@")
		t, isType := dns.StringToType[strings.ToUpper(arg)]
		switch {
		case isServer && server == "":
			server = s
			if _, _, err := net.SplitHostPort(s); err != nil {
				server = net.JoinHostPort(strings.Trim(s, "[]"), "53")
			}
		case name == "":
			name = dns.Fqdn(arg)
			if _, ok := dns.IsDomainName(name); !ok {
				return nil, "", usagef("%q is no domain name", arg)
			}
		case isType:
			typ = t
		default:
			return nil, "", usagef("%q is neither a record type nor @SERVER", arg)
		}
	}
	if name == "" {
		return nil, "", usagef("dig what? give a NAME")
	}
	q = new(dns.Msg).SetQuestion(name, typ)
	q.RecursionDesired = false
	q.SetEdns0(1232, false)
	if subnet != "" {
		p, err := netip.ParsePrefix(subnet)
		if err != nil {
			return nil, "", usagef("--subnet %q: want a prefix such as 203.0.113.0/24", subnet)
		}
		family := uint16(1)
		if p.Addr().Is6() {
			family = 2
		}
		o := q.IsEdns0()
		o.Option = append(o.Option, &dns.EDNS0_SUBNET{
			Code: dns.EDNS0SUBNET, Family: family, SourceNetmask: uint8(p.Bits()), Address: p.Masked().Addr().AsSlice(),
		})
	}
	return q, server, nil
}

// ownNameServer asks the API where the node's name server listens.
func (a *app) ownNameServer(ctx context.Context) (string, error) {
	cl, err := a.client()
	if err != nil {
		return "", err
	}
	var ns api.NameServer
	if err := cl.get(ctx, "/api/v1/nameserver", nil, &ns); err != nil {
		return "", fmt.Errorf("%w; name a server with @SERVER", err)
	}
	if len(ns.Addresses) == 0 {
		return "", errors.New("rota's name server listens nowhere; name a server with @SERVER")
	}
	return reachable(ns.Addresses[0]), nil
}

// reachable turns an address to listen on into one to ask at: every address means this machine.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		if host = "127.0.0.1"; err == nil && ip.Is6() {
			host = "::1"
		}
	}
	return net.JoinHostPort(host, port)
}

func (a *app) dig(ctx context.Context, q *dns.Msg, server string, tcp bool) error {
	c := &dns.Client{Timeout: 5 * time.Second, UDPSize: 1232}
	if tcp {
		c.Net = "tcp"
	}
	r, took, err := c.ExchangeContext(ctx, q, server)
	if err == nil && r.Truncated && !tcp {
		c.Net = "tcp"
		r, took, err = c.ExchangeContext(ctx, q, server)
	}
	if err != nil {
		return fmt.Errorf("%s does not answer: %s", server, plain(err))
	}
	if len(r.Question) != 1 || !strings.EqualFold(r.Question[0].Name, q.Question[0].Name) || r.Question[0].Qtype != q.Question[0].Qtype {
		return fmt.Errorf("%s answers another question than was asked", server)
	}
	if _, err := fmt.Fprintln(a.out, printable(strings.ReplaceAll(r.String(), "\t", " "))); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(a.out, ";; from %s in %dms over %s\n", server, took.Milliseconds(), cmp.Or(c.Net, "udp")); err != nil {
		return err
	}
	if r.Rcode != dns.RcodeSuccess {
		return &coded{code: exitFailed}
	}
	return nil
}

// plain says what went wrong on the network, for people.
func plain(err error) string {
	var unknown *net.DNSError
	var timeout net.Error
	var errno syscall.Errno
	switch {
	case errors.As(err, &unknown) && unknown.IsNotFound:
		return "no address is known of " + unknown.Name
	case errors.As(err, &unknown):
		return "its name cannot be looked up now: " + unknown.Err
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "no reply came in time"
	case errors.Is(err, syscall.ENETUNREACH):
		return "there is no route from here"
	case errors.Is(err, io.EOF):
		return "it closed the connection"
	case errors.As(err, &errno):
		return errno.Error()
	}
	return err.Error()
}
