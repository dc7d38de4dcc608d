package probe

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pin keeps this process on the first processor; the targets have the last.
func pin(b *testing.B) {
	b.Helper()
	var all, first unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		b.Fatal(err)
	}
	first.Set(0)
	every := func(set *unix.CPUSet) {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			b.Fatal(err)
		}
		for _, t := range threads {
			if tid, err := strconv.Atoi(t.Name()); err == nil {
				_ = unix.SchedSetaffinity(tid, set) // a thread may have ended meanwhile
			}
		}
	}
	every(&first)
	b.Cleanup(func() { every(&all) })
}

// cpu is the processor time that this process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// resident is the memory of this process, with what the collector would give back taken off.
func resident(b *testing.B) uint64 {
	b.Helper()
	debug.FreeOSMemory()
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Fatal(err)
	}
	var size, pages uint64
	if _, err := fmt.Sscan(string(statm), &size, &pages); err != nil {
		b.Fatal(err)
	}
	return pages * uint64(os.Getpagesize())
}

// serveFast serves page200 by one thread that asks epoll, so that the target is not what a benchmark measures.
func serveFast(l net.Listener) bool {
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		return false
	}
	defer f.Close()
	epoll, err := unix.EpollCreate1(0)
	if err != nil {
		return false
	}
	listener := int(f.Fd())
	_ = unix.SetNonblock(listener, true)
	_ = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, listener, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(listener)})
	events := make([]unix.EpollEvent, 256)
	buf := make([]byte, 4096)
	answer := []byte(page200)
	for {
		n, err := unix.EpollWait(epoll, events, -1)
		if err != nil && err != unix.EINTR {
			return true
		}
		for _, ev := range events[:max(n, 0)] {
			if int(ev.Fd) == listener {
				for {
					c, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK)
					if err != nil {
						break
					}
					_ = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, c, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(c)})
				}
				continue
			}
			n, err := unix.Read(int(ev.Fd), buf)
			if err == unix.EAGAIN {
				continue
			}
			if n > 0 {
				_, _ = unix.Write(int(ev.Fd), answer)
			}
			if n <= 0 || bytes.Contains(buf[:n], []byte("Connection: close")) {
				_ = unix.Close(int(ev.Fd))
			}
		}
	}
}
