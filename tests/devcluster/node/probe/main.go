// Command probe is the workload of the cluster's own test: one static binary that fails on purpose (probe fail)
// or serves HTTP and looks names up as a pod sees them (probe serve).
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
)

const (
	address  = ":8080"
	exitCode = 7
)

func write(file, content string) {
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		log.Fatal(err)
	}
}

// fail prints a line, leaves a termination message and exits with exitCode.
func fail() {
	fmt.Println("probe ran")
	write("/dev/termination-log", `{"step": 42}`)
	os.Exit(exitCode)
}

// serve writes to the files (to prove that it can), then answers / with the pod's name, and /resolve?name=N with N's addresses (502 when there are none).
func serve(files []string) {
	for _, file := range files {
		write(file, "served")
	}
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		host, err := os.Hostname()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, host)
	})
	http.HandleFunc("/resolve", func(w http.ResponseWriter, r *http.Request) {
		addresses, err := net.DefaultResolver.LookupHost(r.Context(), r.FormValue("name"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		fmt.Fprintln(w, strings.Join(addresses, " "))
	})
	log.Fatal(http.ListenAndServe(address, nil))
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "fail" {
		fail()
	}
	if len(os.Args) >= 2 && os.Args[1] == "serve" {
		serve(os.Args[2:])
	}
	fmt.Fprintln(os.Stderr, "usage: probe fail, or probe serve [FILE...]")
	os.Exit(2)
}
