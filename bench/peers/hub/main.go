// hub is the Go case study's design in a few lines, as a peer of tickcast in the benchmarks.
//
// Producers are goroutines that sleep and publish to a hub. Each client has a goroutine and a buffered channel; a tick
// that finds the channel full is dropped. Each tick leaves as one WebSocket text frame with one write.
//
// On SIGINT or SIGTERM it prints one JSON object with the ticks it published, delivered (wrote to a socket) and dropped.
package main

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Capacity of a client's queue in ticks, as in the case study.
const clientQueueTicks = 256

// Interval at which clients are counted while the producers wait for them.
const clientPollInterval = 10 * time.Millisecond

// Longest payload accepted from a client, which sends only control frames (RFC 6455, section 5.5).
const controlBytesMax = 125

// Longest frame header from the server: two bytes and a length of eight.
const frameHeadBytes = 10

type hub struct {
	mutex   sync.RWMutex
	clients map[chan []byte]struct{}
	// Ticks from producers, frames written to sockets, frames dropped at a full queue.
	published, delivered, dropped atomic.Uint64
}

// publish queues one frame for every client. All share its bytes.
func (h *hub) publish(frame []byte) {
	h.published.Add(1)
	h.mutex.RLock()
	defer h.mutex.RUnlock()
	for client := range h.clients {
		select {
		case client <- frame:
		default:
			h.dropped.Add(1)
		}
	}
}

// count returns the number of clients.
func (h *hub) count() int {
	h.mutex.RLock()
	defer h.mutex.RUnlock()
	return len(h.clients)
}

// produce publishes `rate` ticks per second on its own topic. Each carries its intended send time.
func (h *hub) produce(topic, producers, rate, size int) {
	interval := time.Second / time.Duration(rate)
	// Offsets the producers evenly, as tickcast's simulator does.
	time.Sleep(interval * time.Duration(topic) / time.Duration(producers))
	intended := time.Now()
	for n := 1; ; n++ {
		// The schedule does not depend on how long the sleep takes, so lateness is measured.
		intended = intended.Add(interval)
		time.Sleep(time.Until(intended))
		h.publish(textFrame(payload(intended, topic, n, size)))
	}
}

// payload has the form that tickcast's simulator, publisher and load client share.
func payload(intended time.Time, topic, n, size int) []byte {
	text := fmt.Sprintf(`{"at":%d,"topic":%d,"n":%d,"pad":"`, intended.UnixNano(), topic, n)
	padding := size - len(text) - 2
	if padding < 0 {
		padding = 0
	}
	return []byte(text + strings.Repeat(".", padding) + `"}`)
}

// textFrame is an unmasked text message (RFC 6455, section 5.2).
func textFrame(payload []byte) []byte {
	return append(frameHead(0x81, len(payload)), payload...)
}

func frameHead(first byte, length int) []byte {
	head := make([]byte, 2, frameHeadBytes+length)
	head[0] = first
	switch {
	case length <= 125:
		head[1] = byte(length)
	case length <= 0xffff:
		head[1] = 126
		head = binary.BigEndian.AppendUint16(head, uint16(length))
	default:
		head[1] = 127
		head = binary.BigEndian.AppendUint64(head, uint64(length))
	}
	return head
}

// ServeHTTP upgrades a request on any path to a WebSocket and writes to the client until it disconnects.
func (h *hub) ServeHTTP(response http.ResponseWriter, request *http.Request) {
	key := request.Header.Get("Sec-WebSocket-Key")
	hijacker, ok := response.(http.Hijacker)
	if key == "" || !ok {
		http.Error(response, "this endpoint accepts only WebSocket requests", http.StatusBadRequest)
		return
	}
	conn, buffered, err := hijacker.Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	_, err = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(sum[:]))
	if err != nil {
		return
	}
	queue := make(chan []byte, clientQueueTicks)
	h.mutex.Lock()
	h.clients[queue] = struct{}{}
	h.mutex.Unlock()
	defer func() {
		h.mutex.Lock()
		delete(h.clients, queue)
		h.mutex.Unlock()
	}()
	gone := make(chan struct{})
	pongs := make(chan []byte, 1)
	go func() {
		defer close(gone)
		readControl(buffered.Reader, pongs)
	}()
	for {
		select {
		case <-gone:
			return
		case pong := <-pongs:
			_, err = conn.Write(pong)
		case frame := <-queue:
			if _, err = conn.Write(frame); err == nil {
				h.delivered.Add(1)
			}
		}
		if err != nil {
			return
		}
	}
}

// readControl answers pings. It returns when the client closes, disconnects or sends anything else.
func readControl(reader *bufio.Reader, pongs chan<- []byte) {
	var head [6]byte
	for {
		if _, err := io.ReadFull(reader, head[:]); err != nil {
			return
		}
		length := int(head[1] & 0x7f)
		if head[1]&0x80 == 0 || length > controlBytesMax {
			return
		}
		body := make([]byte, length)
		if _, err := io.ReadFull(reader, body); err != nil {
			return
		}
		for at := range body {
			body[at] ^= head[2+at%4]
		}
		switch head[0] {
		case 0x89:
			select {
			case pongs <- append(frameHead(0x8a, length), body...):
			default:
			}
		case 0x8a:
		default:
			return
		}
	}
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "listen on `ADDRESS`; with port 0, the kernel chooses")
	producers := flag.Int("producers", 50, "start `N` producers, each with its own topic; 0 for an idle hub")
	rate := flag.Int("rate", 100, "publish `N` ticks per second from each producer")
	size := flag.Int("size", 100, "pad payloads to `BYTES`")
	waitClients := flag.Int("wait-clients", 0, "start the producers once `N` clients are connected")
	flag.Parse()
	if *producers < 0 || *rate < 1 || *rate > 1_000_000 || *size < 1 || *size > 1<<20 {
		fmt.Fprintln(os.Stderr, "hub: -rate must be 1 to 1000000, -size 1 to 1048576, and -producers at least 0")
		os.Exit(2)
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		fmt.Fprintf(os.Stderr, "hub: -listen %s: %v\n", *listen, err)
		os.Exit(2)
	}
	h := &hub{clients: make(map[chan []byte]struct{})}
	go http.Serve(listener, h)
	go func() {
		for h.count() < *waitClients {
			time.Sleep(clientPollInterval)
		}
		for topic := 0; topic < *producers; topic++ {
			go h.produce(topic, *producers, *rate, *size)
		}
	}()
	fmt.Printf("http=%s\n", listener.Addr())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	<-signals
	fmt.Printf("{\"published\":%d,\"delivered\":%d,\"dropped\":%d}\n",
		h.published.Load(), h.delivered.Load(), h.dropped.Load())
}
