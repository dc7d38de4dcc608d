package probing

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Ports of the target, on all addresses of 127.0.0.0/8. Nobody listens on portRefused; what is sent to portDark is lost.
const (
	portHTTP    = 8080
	portTCP     = 8081
	portHTTPS   = 8443
	portRefused = 9
	portDark    = 10
	portExport  = 9115 // of blackbox_exporter
)

// counts is what the target has served.
type counts struct {
	Requests   int64 // answered, on HTTP
	Handshakes int64 // of TLS
	Secure     int64 // requests answered on HTTPS
}

// identity is the target's certificate, PEM.
type identity struct{ Cert, Key string }

const (
	kept   = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	closed = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
)

// closes reports whether a request is the last of its connection.
func closes(request []byte) bool {
	return bytes.Contains(request, []byte(" HTTP/1.0\r\n")) || bytes.Contains(bytes.ToLower(request), []byte("\r\nconnection: close\r\n"))
}

// serveTarget is the target's process. The first line that it reads is its identity; every line is answered with counts.
func serveTarget() {
	t := &target{}
	go t.serve()
	answerer(func(id identity) counts {
		if id.Cert != "" {
			t.secure(id)
		}
		return counts{t.requests.Load(), t.handshakes.Load(), t.secured.Load()}
	})
}

// target answers as cheaply as it can: one thread with epoll for HTTP and TCP; crypto/tls for HTTPS.
type target struct{ requests, handshakes, secured atomic.Int64 }

func must[T any](v T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, "target:", err)
		os.Exit(1)
	}
	return v
}

func (t *target) serve() {
	poll := must(unix.EpollCreate1(0))
	watch := func(fd int) bool {
		return unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP, Fd: int32(fd)}) == nil
	}
	listeners := map[int32]bool{}
	for _, port := range []int{portHTTP, portTCP} {
		fd := must(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0))
		must(0, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
		must(0, unix.Bind(fd, &unix.SockaddrInet4{Port: port}))
		must(0, unix.Listen(fd, 65535))
		must(0, unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}))
		listeners[int32(fd)] = true
	}
	buf := make([]byte, 8<<10)
	// speak answers what has come; it returns false when the connection is over.
	speak := func(fd int) bool {
		n, err := unix.Read(fd, buf)
		if err == unix.EAGAIN {
			return true
		}
		if err != nil || n == 0 {
			return false
		}
		answer, last := kept, closes(buf[:n])
		if last {
			answer = closed
		}
		if _, err := unix.Write(fd, []byte(answer)); err != nil {
			return false
		}
		t.requests.Add(1)
		return !last
	}
	events := make([]unix.EpollEvent, 256)
	for {
		n, err := unix.EpollWait(poll, events, -1)
		if err == unix.EINTR {
			continue
		}
		for _, e := range events[:must(n, err)] {
			if !listeners[e.Fd] {
				if !speak(int(e.Fd)) {
					unix.Close(int(e.Fd))
				}
				continue
			}
			for range 64 {
				fd, _, err := unix.Accept4(int(e.Fd), unix.SOCK_NONBLOCK)
				if err != nil {
					break
				}
				if !speak(fd) || !watch(fd) {
					unix.Close(fd)
				}
			}
		}
	}
}

// secure serves HTTPS. Nobody can resume a session, so that a new connection is a full handshake.
func (t *target) secure(id identity) {
	pair := must(tls.X509KeyPair([]byte(id.Cert), []byte(id.Key)))
	l := must(tls.Listen("tcp", fmt.Sprintf(":%d", portHTTPS), &tls.Config{Certificates: []tls.Certificate{pair}, SessionTicketsDisabled: true}))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				time.Sleep(time.Millisecond) // no descriptor is left for a moment
				continue
			}
			go t.converse(c.(*tls.Conn))
		}
	}()
}

func (t *target) converse(c net.Conn) {
	defer c.Close()
	buf := make([]byte, 4<<10)
	for first := true; ; first = false {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if first {
			t.handshakes.Add(1)
		}
		answer, last := kept, closes(buf[:n])
		if last {
			answer = closed
		}
		if _, err := c.Write([]byte(answer)); err != nil {
			return
		}
		t.secured.Add(1)
		if last {
			return
		}
	}
}
