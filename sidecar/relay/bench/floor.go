package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/srtp/v3"
	"golang.org/x/sync/errgroup"
)

// The floor is what packets cost that are received, decrypted, encrypted anew and sent one by one, and nothing else: a socket and
// a goroutine for each stream, keys that are known beforehand.
const (
	floorVideo  = 1100 // bytes of a packet's payload
	floorFrame  = 8    // packets
	floorFrames = 30   // a second
	floorAudio  = 80
	floorRate   = 50
)

// floorKeys are the same everywhere: nothing secret goes over this path.
func floorKeys() (*srtp.Context, error) {
	return srtp.CreateContext(make([]byte, 16), make([]byte, 12), srtp.ProtectionProfileAeadAes128Gcm)
}

// floorServe carries n streams to an address, in the process that is measured, and says at which ports it takes them.
func floorServe(ctx context.Context, group *sync.WaitGroup, n int, to string) (ports []uint16, err error) {
	target, err := netip.ParseAddrPort(to)
	if err != nil {
		return nil, err
	}
	for range n {
		conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(target.Addr(), 0)))
		if err != nil {
			return nil, err
		}
		context.AfterFunc(ctx, func() { _ = conn.Close() })
		in, err := floorKeys()
		if err != nil {
			return nil, err
		}
		out, err := floorKeys()
		if err != nil {
			return nil, err
		}
		ports = append(ports, conn.LocalAddr().(*net.UDPAddr).AddrPort().Port())
		group.Go(func() {
			buffer, encrypted := make([]byte, 1500), make([]byte, 0, 1500)
			var header rtp.Header
			for {
				size, _, err := conn.ReadFromUDPAddrPort(buffer)
				if err != nil {
					return
				}
				plain, err := in.DecryptRTP(buffer[:size], buffer[:size], &header)
				if err != nil {
					continue
				}
				if encrypted, err = out.EncryptRTP(encrypted[:0], plain, &header); err != nil {
					continue
				}
				_, _ = conn.WriteToUDPAddrPort(encrypted, target)
			}
		})
	}
	return ports, nil
}

// measureFloor is the CPU time per gigabit of that, in seconds.
func measureFloor(ctx context.Context, streams int, d time.Duration) (float64, error) {
	sink, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return 0, err
	}
	_ = sink.SetReadBuffer(4 << 20)
	c, err := startChild(ctx, roleFloor, "", "")
	if err != nil {
		return 0, err
	}
	defer c.stop()
	started, err := c.ask(command{Start: streams, To: sink.LocalAddr().String()})
	if err != nil {
		return 0, err
	}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	group, inner := errgroup.WithContext(inner)
	context.AfterFunc(inner, func() { _ = sink.Close() })
	var received atomic.Uint64 // bytes of payload
	group.Go(func() error {
		buffer := make([]byte, 1500)
		for {
			n, _, err := sink.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return nil //nolint:nilerr // it is closed when all is done
			}
			received.Add(uint64(max(n-12-16, 0))) // header and tag
		}
	})
	for i, port := range started.Ports {
		group.Go(func() error { return floorSend(inner, uint32(i), port) })
	}
	var result float64
	group.Go(func() error {
		defer cancel()
		if err := pause(inner, settle); err != nil {
			return err
		}
		before, err := c.ask(command{})
		if err != nil {
			return err
		}
		bytes := received.Load()
		if err := pause(inner, d); err != nil {
			return err
		}
		after, err := c.ask(command{})
		if err != nil {
			return err
		}
		gigabits := float64(received.Load()-bytes) * 8 / 1e9
		if gigabits == 0 {
			return fmt.Errorf("nothing came through the floor")
		}
		result = (after.CPU - before.CPU).Seconds() / gigabits
		return nil
	})
	if err := group.Wait(); err != nil && result == 0 {
		return 0, err
	}
	return result, nil
}

// floorSend sends one stream until ctx ends.
func floorSend(ctx context.Context, ssrc uint32, port uint16) error {
	conn, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(port)})
	if err != nil {
		return err
	}
	defer conn.Close()
	out, err := floorKeys()
	if err != nil {
		return err
	}
	raw, encrypted := make([]byte, 12+floorVideo), make([]byte, 0, 1500)
	raw[0], raw[1] = 0x80, 96
	seq := uint16(0)
	send := func(ssrc uint32, payload int) {
		seq++
		binary.BigEndian.PutUint16(raw[2:], seq)
		binary.BigEndian.PutUint32(raw[8:], ssrc)
		if e, err := out.EncryptRTP(encrypted[:0], raw[:12+payload], nil); err == nil {
			_, _ = conn.Write(e)
		}
	}
	frames, sounds := time.NewTicker(time.Second/floorFrames), time.NewTicker(time.Second/floorRate)
	defer frames.Stop()
	defer sounds.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-frames.C:
			for range floorFrame {
				send(2*ssrc, floorVideo)
			}
		case <-sounds.C:
			send(2*ssrc+1, floorAudio)
		}
	}
}
